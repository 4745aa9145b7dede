"""The field's own tests: how each one's data are read and asked. `table.SUITES` has them all."""
