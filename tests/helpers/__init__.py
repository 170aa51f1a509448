"""What tests of both packages share: slides, cohorts and runs to test on."""
