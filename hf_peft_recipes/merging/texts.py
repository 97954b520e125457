"""Texts of many kinds, on which two models can be compared when a run's own data are gone."""

TEXTS = (
    "The ferry leaves the island at seven in the morning and comes back after dark. On windy days it does not leave "
    "at all, and whoever has to be somewhere waits in the café by the pier until the captain changes his mind.",
    "Question: A baker sells 14 loaves in the morning and twice as many in the afternoon. How many loaves is that?\n"
    "Answer: In the afternoon the baker sells 2 * 14 = 28 loaves. Together that is 14 + 28 = 42 loaves.",
    "def largest(values):\n    found = values[0]\n    for value in values[1:]:\n        if value > found:\n"
    "            found = value\n    return found\n",
    '{"name": "garden", "beds": [{"plant": "bean", "rows": 3}, {"plant": "leek", "rows": 2}], "watered": true}',
    "Review: The rooms were clean and the breakfast was good, but the street is loud at night.\nSentiment: mixed",
    "Water boils at a lower temperature on a mountain, since the air above it weighs less. That is why beans take "
    "longer to cook there, although the pot seems to boil harder.",
    "Der Zug nach Norden fährt heute von Gleis vier ab. Bitte achten Sie auf den Abstand zwischen Zug und Bahnsteig.",
    "1. Wash the rice until the water runs clear.\n2. Let it soak for half an hour.\n3. Bring it to the boil, cover "
    "it, and leave it on a low flame for twelve minutes.\n4. Do not lift the lid.",
)
