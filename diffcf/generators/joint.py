"""Semantic and stochastic code as one variable: what a search can reach that may change x_T too.

What only x_T knows, an edit of the semantic code alone cannot reach.
"""

from __future__ import annotations

from einops import pack, unpack
from torch import Tensor

from diffcf.errors import ConfigError
from diffcf.generators.space import Space, same_stochastic
from diffcf.types import Code


class JointSpace(Space):
    """Scans "b s c h w" <-> Code(semantic "b s n" = both codes of every slice flattened, no stochastic part).

    generator: a `SliceWise` whose codes have an x_T. `decode` is differentiable in both, through every sampling step;
    there is no preview, since one evaluation at the noisiest level says little about x_T. Both parts are in their own
    units, which for a standardised code and white noise are alike.
    """

    def encode_semantic(self, image: Tensor) -> Tensor:
        """Both codes of scans "b s c h w", "b s n"; x_T has to be inverted for it."""
        return self.encode(image).semantic

    def encode(self, image: Tensor) -> Code:
        """Scan "b s c h w" in [-1, 1] -> both codes as one."""
        code = self.generator.encode(image)
        if code.stochastic is None:
            raise ConfigError("this generator has no x_T to search together with its code; take the method 'latent'.")
        both, self._shapes = pack([code.semantic, code.stochastic], "b s *")
        return Code(both)

    def refreshed(self, code: Code, seed: int) -> Code:
        """The same semantic codes with a fresh x_T, the same one for every scan."""
        semantic, stochastic = unpack(code.semantic, self._shapes, "b s *")
        fresh = same_stochastic(self.generator, semantic, seed).to(stochastic)
        return Code(pack([semantic, fresh], "b s *")[0])

    def decode(self, code: Code) -> Tensor:
        """Both codes -> scan "b s c h w"; not clamped. Only after `encode`, which learns their shapes."""
        semantic, stochastic = unpack(code.semantic, self._shapes, "b s *")
        return self.generator.decode(Code(semantic, stochastic))
