"""Operation, administration, maintenance (DA-ITN OAM): what people see of a run.

Everything here is computed from the trace (`events.jsonl`): the live table, the result, the
report. Losing it does not stop a packet.
"""
