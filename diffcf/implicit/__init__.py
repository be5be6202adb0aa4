"""How to differentiate through an argmin: u*(θ) = argmin_u T(u, θ) with a gradient to θ.

Problem, solver and adjoint are three separate choices: `Problem` is what is minimised, `GaussNewton` or `ProximalSteps`
minimise it, and `Detached`, `Unrolled` or `Implicit` say how a loss of u* reaches θ.
"""

from diffcf.implicit.adjoint import Adjoint, Detached, Implicit, Report, Solved, Unrolled
from diffcf.implicit.problem import Parameters, Problem
from diffcf.implicit.solvers import GaussNewton, InnerSolver, ProximalSteps, SubgradientSteps

__all__ = [
    "Adjoint",
    "Detached",
    "GaussNewton",
    "Implicit",
    "InnerSolver",
    "Parameters",
    "Problem",
    "ProximalSteps",
    "Report",
    "Solved",
    "SubgradientSteps",
    "Unrolled",
]
