"""`python -m bench`: Causeway side by side with its peers on one machine, ratios within one run."""
