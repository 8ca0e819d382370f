"""Where a request goes: over HTTP, or into a local model. One exchange each; no retry, no price."""
