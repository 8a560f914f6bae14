"""The HTTP face: `/api/v1`, additive only. `openapi-v1.json` is the contract."""
