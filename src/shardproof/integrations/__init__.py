"""Thin bridges to serving engines and model libraries; all knowledge is in the rooms below."""
