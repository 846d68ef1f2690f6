"""The IR, its text, verifier, evaluator and rules; importers, pipeline and analyses."""
