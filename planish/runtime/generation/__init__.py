"""Generation of text by the functions `prefill` and `decode` of an artifact, with numpy alone."""
