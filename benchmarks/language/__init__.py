"""Language models beside their peers: prefill, decode, memory, perplexity and greedy text."""
