"""What an ingress gateway serves, as Istio's Gateway and VirtualService objects say it; decided without any IO."""
