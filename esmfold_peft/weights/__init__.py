"""Published weights of ESM-2 and ESMFold: reading, converting, inspecting."""
