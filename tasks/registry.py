"""Importing this module registers every task and mixture of the project with SeqIO."""

from tasks import pretraining, translation

for _module in (pretraining, translation):
    _module.register()
