"""The proxy service: listeners for services, balancing, policy, dialling of local backends."""
