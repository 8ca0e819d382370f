"""Models compared on one's own texts: what each finds, what it costs, what it stores."""
