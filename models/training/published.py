"""Published test errors that a run's errors stand beside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Errors of a published model.

    Attributes:
        model: Its name.
        errors: Test set -> (RMSE of the total energy in meV, RMSE of force components in meV/Å).
        source: Where the figures were published.
    """

    model: str
    errors: dict[str, tuple[float, float]]
    source: str


_MACE = "arXiv 2206.07697, Table 2"
_ALLEGRO = "Nat. Commun. 14, 579 (2023), Table 2"


def _3bpa(model: str, source: str, *pairs: tuple[float, float]) -> Published:
    """Errors at 300, 600 and 1200 K and, where published, on the dihedral slices."""
    return Published(
        model, dict(zip(("300K", "600K", "1200K", "dihedral"), pairs, strict=False)), source
    )


# Models trained on 450 + 50 frames of 3BPA at 300 K, tested on the official test sets.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "3bpa": (
        _3bpa("MACE L=2", _MACE, (3.0, 8.8), (9.7, 21.8), (29.8, 62.0), (7.8, 16.5)),
        _3bpa("MACE L=1", _MACE, (3.4, 10.3), (9.9, 24.6), (31.7, 67.8), (11.5, 19.3)),
        _3bpa("MACE L=0", _MACE, (4.5, 14.6), (13.7, 33.3), (37.1, 81.6), (12.3, 26.1)),
        _3bpa("NequIP L=3", _ALLEGRO, (3.3, 10.8), (11.2, 26.4), (38.5, 76.2)),
        _3bpa("BOTNet L=3", _MACE, (3.1, 11.0), (11.5, 26.7), (39.1, 81.1), (16.3, 20.0)),
        _3bpa("Allegro L=3", _ALLEGRO, (3.84, 12.98), (12.07, 29.17), (42.57, 82.96)),
        _3bpa("linear ACE", _ALLEGRO, (7.1, 27.1), (24.0, 64.3), (85.3, 187.0)),
    )
}
