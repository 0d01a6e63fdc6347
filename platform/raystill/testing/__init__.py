"""Stand-ins for the outside world: a faulty network, a scripted API. For tests, benchmarks and rehearsals."""
