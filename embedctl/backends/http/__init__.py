"""One HTTP exchange. The door to the HTTP client; imported late, for it is not needed by runs that stay here."""
