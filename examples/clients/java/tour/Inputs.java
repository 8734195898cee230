package tour;

import java.util.List;

/** What to ask about; the names are those of the JSON file. */
record Inputs(
    String model,
    String prompt,
    List<String> target_tokens,
    List<String> distractor_tokens,
    String autoencoder,
    String unicode) {}
