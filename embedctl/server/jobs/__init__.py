"""Jobs of the service: work in the background, in child processes of `embedctl batch run`. Begin at queue.py."""
