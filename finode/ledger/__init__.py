"""What sessions leave behind: receipts and statements that were checked, kept for ever, and what follows from them.

records.py     from bytes that anybody may send to values that are true: SignedReceipt -> VerifiedReceipt
envelopes.py   records as they travel and are kept, and back
merging.py     one record from two versions of it, and proofs from records that contradict each other
elements.py    the keys of all records, with cheap sums over ranges of them
database.py    the ledger's SQLite file
store.py       the ledger on disk
intake.py      which true records may enter it
reconcile.py   how two ledgers find out what they lack of each other's
"""
