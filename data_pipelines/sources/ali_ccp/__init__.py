"""Ali-CCP (Ma et al., 2018): as published, or with the ids of Scenario-Wise-Rec."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from data_pipelines.source import DataSet, PrepareConfig, Source, Workplace


@dataclass(frozen=True, kw_only=True)
class AliCCP(DataSet):
    """Ali-CCP: the three positions of field 301, in the published halves."""

    config: tyro.conf.OmitArgPrefixes[PrepareConfig] = field(
        default_factory=lambda: PrepareConfig(min_count=10)
    )
    multi_valued: bool = False
    """Keep several values of a multi-valued field instead of the last one."""
    max_slots: int = 8
    """The number of them."""
    encoded: bool = False
    """The files are those of Scenario-Wise-Rec, whose ids are kept."""

    def read(self, place: Workplace) -> Source:
        """Return the impressions with their common features."""
        from data_pipelines.sources.ali_ccp.encoded import ali_ccp_encoded
        from data_pipelines.sources.ali_ccp.published import ali_ccp

        if self.encoded:
            return ali_ccp_encoded(place.connection, self.files, place.scratch)
        return ali_ccp(
            place.connection,
            self.files,
            place.scratch,
            last_value=not self.multi_valued,
            max_slots=self.max_slots,
            progress=place.advance,
        )
