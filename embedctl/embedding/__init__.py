"""Step 4, the call point: a request becomes vectors, whoever answers, and every attempt is accounted for."""
