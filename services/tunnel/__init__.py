"""The tunnel service: sessions to other nodes that outlive their links, and the streams inside them."""
