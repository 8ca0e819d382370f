"""The gateway: what an OpenAI-compatible client asks for goes through the call point, and is accounted to its key."""
