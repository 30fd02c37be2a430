"""How well pretraining data matches a translation task."""

from collections.abc import Mapping, Sequence


def alignment_score(pretrain_languages: Mapping[str, float], languages: Sequence[str]) -> float:
    """A(D) = P_src * P_dst + 0.7 * P_src + 0.8 * P_dst (Isik et al., arXiv 2402.04177, Eq. 2).

    Args:
      pretrain_languages: language -> its share of the pretraining data, in [0, 1].
      languages: (source, destination) of the task.

    Raises:
      ValueError: not two languages, or shares that are no shares.
    """
    source, destination = languages
    if any(not 0 <= share <= 1 for share in pretrain_languages.values()):
        raise ValueError(f"shares of languages must lie in [0, 1]: {dict(pretrain_languages)}")
    p_source = pretrain_languages.get(source, 0.0)
    p_destination = pretrain_languages.get(destination, 0.0)
    return round(p_source * p_destination + 0.7 * p_source + 0.8 * p_destination, 12)
