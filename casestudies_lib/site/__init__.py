"""The pages of the site: each file generates one part of it from report files, results and evidence."""
