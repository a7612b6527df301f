"""Where products and queries come from: tables, folders of pictures, MERIT's files, BEIR's, the hub, what
ships with the package; and writing them.
"""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.sources.beir import read_beir as read_beir
    from coral_lab.sources.beir import read_qrels as read_qrels
    from coral_lab.sources.beir_writing import write_beir as write_beir
    from coral_lab.sources.beir_writing import write_qrels as write_qrels
    from coral_lab.sources.columns import Columns as Columns
    from coral_lab.sources.hub import download as download
    from coral_lab.sources.judgements import Session as Session
    from coral_lab.sources.judgements import merged as merged
    from coral_lab.sources.merit_files import merit as merit
    from coral_lab.sources.merit_files import read_products as read_products
    from coral_lab.sources.merit_files import read_queries as read_queries
    from coral_lab.sources.opening import dataset as dataset
    from coral_lab.sources.package_files import shipped as shipped
    from coral_lab.sources.picture_fetching import fetch_pictures as fetch_pictures
    from coral_lab.sources.picture_folder import read_pictures as read_pictures
    from coral_lab.sources.sampling import Sampling as Sampling
    from coral_lab.sources.sampling import sample_queries as sample_queries
    from coral_lab.sources.tables import columns_of as columns_of
    from coral_lab.sources.tables import read_table as read_table
    from coral_lab.sources.writing import write_merit as write_merit

__getattr__, __dir__, __all__ = public(__name__, __file__)
