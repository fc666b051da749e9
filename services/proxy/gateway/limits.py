"""How long a gateway waits for whom, in seconds."""

HEAD_TIME = 15.0  # for a request's head, from its first byte: slower clients only hold a place
KEEP_ALIVE = 75.0  # until the next request begins
BODY_IDLE = 60.0  # without a byte of a request's body, where nothing else can be sent on its connection
STALL = 120.0  # in which a client takes nothing of an answer
ANSWER_IDLE = 300.0  # without a byte either way while an answer is due; Envoy's stream_idle_timeout
