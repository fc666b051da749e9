"""Pure decisions of the proxy: what to listen on, where to send, what may be dialled."""
