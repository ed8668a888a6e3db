"""Secrets in text are masked."""

from pipeline.common.secrets import mask_secrets


def test_secrets_are_masked():
    masked = mask_secrets(
        "postgresql://me:pa55@db/x s3://KEY:pa55@bucket/x?secret_key=pa55&region=eu https://pa55@h/ token=pa55"
    )
    assert "pa55" not in masked
    assert "postgresql://me:***@db/x" in masked
    assert "region=eu" in masked
    for line in (
        'api_key = "pa55 55"',
        '{"password": "pa55"}',
        "Authorization: Bearer pa55pa55pa55",
        "export AWS_SECRET_ACCESS_KEY=pa55",
        "-----BEGIN RSA PRIVATE KEY-----\npa55\n-----END RSA PRIVATE KEY-----",
        "ghp_pa55pa55pa55pa55pa55pa55",
    ):
        assert "pa55" not in mask_secrets(line)
        assert "***" in mask_secrets(line)
    for line in ("s3://bucket/a@b http://host:5000/x", "self.token_mixer = DMixer(dim)", '{"lr": 0.1}'):
        assert mask_secrets(line) == line
