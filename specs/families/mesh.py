"""Text to mesh: three graphs, and marching cubes on the host.

token_ids --text_encoder--> text_features
text_features, latent --triplane--> planes
planes, points --field--> distance, colour            as often as there are blocks of points
"""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import ClipTextComponent
from specs.components.mesh import FieldComponent, TriplaneComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids, make_model_graph
from specs.schema import Dim, Spec


@final
class TextToMeshFamily(Family):
    """`text.clip`, `mesh.triplane` and `mesh.field`."""

    kind = "text-to-mesh"
    title = "text to mesh"
    roles: ClassVar = {"text_encoder": ("text.clip",), "triplane": ("mesh.triplane",), "field": ("mesh.field",)}
    dims: ClassVar = {"batch": BATCH, "points": Dim(min=1, opt=32768, max=65536)}
    objectives = ("diffusion", "autoregressive")

    def check(self, spec: Spec, roles: Roles) -> None:
        text = cast(ClipTextComponent, spec.components[roles["text_encoder"]])
        triplane = cast(TriplaneComponent, spec.components[roles["triplane"]])
        for role, key, wanted, source in (
            ("triplane", "text_size", text.hidden_size, "text_encoder.hidden_size"),
            ("field", "plane_channels", triplane.plane_channels, "triplane.plane_channels"),
            ("field", "plane_size", triplane.plane_size, "triplane.plane_tokens * triplane.patch_size"),
        ):
            given = getattr(spec.components[roles[role]], key)
            if given != wanted:
                raise SpecError(
                    f"{roles[role]}.{key} {given} is not {source}",
                    where=f"components.{roles[role]}.{key}",
                    allowed=str(wanted),
                    fix="give both the same",
                )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        text = cast(ClipTextComponent, components[roles["text_encoder"]])
        triplane = cast(TriplaneComponent, components[roles["triplane"]])
        field = cast(FieldComponent, components[roles["field"]])
        features = make_float("text_features", "batch", text.hidden_size)
        side = triplane.plane_size
        planes = make_float("planes", "batch", 3, field.plane_channels, side, side)
        graphs = {
            roles["text_encoder"]: (
                (make_ids("token_ids", "batch", text.context_length, vocab_size=text.vocab_size),),
                (features,),
            ),
            roles["triplane"]: ((features, make_float("latent", "batch", triplane.latent_size)), (planes,)),
            roles["field"]: (
                (planes, make_float("points", "batch", "points", 3)),
                (make_float("distance", "batch", "points"), make_float("colour", "batch", "points", 3)),
            ),
        }
        return tuple(make_model_graph(name, *graphs[name]) for name in components)
