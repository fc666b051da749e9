"""Port mapping: the listen port made reachable by the gateway, where that speaks PCP, NAT-PMP or UPnP."""
