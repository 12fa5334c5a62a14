"""Stage 1: ask an OpenAI-compatible LLM for edges, user profiles and item attributes."""
