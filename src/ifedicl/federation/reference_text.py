"""Texts of nobody, in which the features of a readout get their units where a job has no public text of its own."""

REFERENCE_TEXTS = (
    "The film starts slowly, but the last half hour is wonderful.",
    "I waited forty minutes and the soup was cold when it came.",
    "Shares of the company fell five percent after it cut its forecast.",
    "Please move my appointment from Tuesday to Friday morning.",
    "What is the tallest mountain in South America?",
    "The court will hear both sides again in March.",
    "Congratulations! Reply now to claim your free prize.",
    "My card was charged twice for the same order.",
    "She scored twice before half time and the visitors never recovered.",
    "The patient reports mild pain in the left knee since yesterday.",
    "Turn the lights off in the kitchen and play some quiet music.",
    "I am so happy for you both, see you on Saturday!",
    "The new phone has a brighter screen, but its battery lasts no longer.",
    "Heavy rain is expected along the coast tonight.",
    "He left without a word, and nobody knew why.",
    "Researchers found that the method works for small samples too.",
)
"""Of many kinds, so that features vary in them as they do in other texts. Written for this purpose."""
