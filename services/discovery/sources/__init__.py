"""Where knowledge comes from. Each source is one small class with one `run`, and waits for no other."""
