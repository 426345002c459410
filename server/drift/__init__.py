"""From the counts of a check to what changed: no data, no files, no clock; the same counts have the same findings.

Where to look, by question::

    what is found               findings
    how the parts go together   analyse
    how far two histograms are  psi; what p-values and intervals are, tests; suppression and noise, correct
    what kind of change it is   covariate, label_shift, concept, quality
"""
