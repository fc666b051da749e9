"""Pure parts that cores of several services share: standard library only, no IO, no clock."""
