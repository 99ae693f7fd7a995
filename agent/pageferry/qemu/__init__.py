"""Everything that talks to QEMU. The only user of qemu.qmp and trio-asyncio."""
