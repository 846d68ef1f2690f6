"""What a machine that only runs artifacts needs: the format, the executor and nothing of the compiler."""
