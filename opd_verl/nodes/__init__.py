"""The preflight on a Ray cluster: looks at every node for problems that would end the job hours later."""
