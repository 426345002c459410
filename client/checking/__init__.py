"""What a site counts for a check (``fedretrain.checks``), one concern per file.

    reading      data by a wider contract: missing and impossible values and unknown labels are counted, not refused
    windows      which examples are reference and which are recent
    predictions  the model's answers, the one part that needs TensorFlow
    counting     histograms and tables of examples, answers and labels
    quality      repeated examples, suspected label noise, and what training leaves out
    suppress     small cells are withheld, and noise is added where the policy wants it
    business     numbers from the site's own functions
    answer       all of it as one ``fedretrain.checks.Answer``

Invariants:

- Everything but the noise is counted from data, contract, settings and the values the server sent, in whole numbers:
  the same bits in every process.
- Nothing leaves these modules that ``suppress`` has not seen, but for business metrics, events and which features are
  constant.
"""
