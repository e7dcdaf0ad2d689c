"""Attack a policy: probes, mutations of them, detectors, rates; and canaries for memorisation."""
