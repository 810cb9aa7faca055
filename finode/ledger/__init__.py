"""What sessions leave behind: receipts and statements that were checked, kept for ever, and what follows from them.

records.py     from bytes that anybody may send to values that are true: SignedReceipt -> VerifiedReceipt
"""
