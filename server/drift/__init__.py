"""From the counts of a check to what changed: no data, no files, no clock; the same counts have the same findings.

Where to look, by question::

    what is found                       findings; how good the model is, performance
    how the parts go together           analyse, question (one level for all that is asked)
    what is compared with what          windows
    how far apart two histograms are    psi; p-values and intervals, tests; suppression and noise, correct
    what kind of change it is           covariate, label_shift, concept, quality, stream
"""
