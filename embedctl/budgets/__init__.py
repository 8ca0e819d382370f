"""What may be spent: amounts reserved before a request is sent, and settled after it."""
