package tour;

/** The frames are not those of one whole, undamaged answer. */
class DamagedAnswer extends Exception {
  private static final long serialVersionUID = 1;

  DamagedAnswer(String problem) {
    super("the answer is damaged: " + problem);
  }

  /** The frames end before the trailer. Any other damage is that they contradict themselves. */
  static final class Truncated extends DamagedAnswer {
    private static final long serialVersionUID = 1;

    Truncated() {
      super("truncated: it ended without a trailer");
    }
  }
}
