"""The scorecard: how many requests common workloads take, and how their answers agree with `transformers` and hooks."""
