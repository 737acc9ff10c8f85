"""Models: the recurrent encoder, the language model around it, the classifier around that. They know no text."""

# Registers itself, so that its name is known whichever module is imported first.
from ulmfit.models import awd_lstm as awd_lstm
