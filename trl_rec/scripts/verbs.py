"""Lists the verbs (subcommands) of `trl-rec` with their descriptions. Each verb has its own script in this folder."""

VERBS = {
    "prepare": "make a dataset folder from an interaction log and a catalogue",
    "tokenize": "make semantic IDs for the items of a dataset folder",
    "bear": "fine-tune a recommender: BEAR, MSL (--bear_weight 0) or plain SFT (--bear_weight 0 --softmax vocabulary)",
    "blade": "train a model to write lists with high rewards (accuracy, diversity, fairness of a whole list)",
    "alro": "fine-tune a model to order a user's rated candidates, independently of the order in which they are shown",
    "softmax_dpo": "train on preferences: one chosen and several rejected completions per prompt",
    "align3gr": "make semantic IDs, fine-tune on several tasks, train on preferences in stages; or do only the stages",
    "study": "train and compare several arms over several seeds, and measure each on the test split, once per seed",
    "evaluate": "measure baselines on a split and, if given, a model or lists made elsewhere; save metrics per user",
    "compare": "compare runs over the same users: differences with intervals, p-values and a verdict",
    "recommend": "print what a trained model recommends to a user, or write one list per user to a file",
    "serve": "answer requests for recommendations over HTTP, and show a page to try the model in a browser",
    "export": "write a run folder as a model that needs no PEFT, or push it to the Hugging Face hub without user data",
    "report": "write one HTML page on runs, evaluations or a study: verdicts, tables, charts, lists",
    "recipe": "print a shipped recipe to copy and change, or the names of all recipes",
    "env": "print what a bug report needs: versions, devices, threads and installed extras",
}
# The training verbs. `trl-rec` runs them under `accelerate launch`.
TRAINING = ("bear", "alro", "blade", "softmax_dpo", "align3gr")
# Scripts that are not named after their verb (see tokenizing.py).
SCRIPTS = {"tokenize": "tokenizing"}
# The method of each training verb, as written in the name of the default output folder.
METHODS = {"bear": "BEAR", "blade": "BLADE", "alro": "ALRO", "softmax_dpo": "Softmax-DPO", "align3gr": "Align3GR"}
LAUNCH_KEYS = ("num_processes", "accelerate_config")  # keys that `trl-rec` uses to launch a training verb
LAUNCH = "TRL_REC_LAUNCH"  # environment variable that passes the given values of `LAUNCH_KEYS` to the verb, as JSON
OWN_HELP = ("report", "recipe", "env")  # verbs that parse their own options and print their own help
