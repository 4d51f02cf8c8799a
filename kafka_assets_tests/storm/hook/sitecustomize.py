"""Found first on the path of the processes that a storm starts: watches its kill points there."""

from kafka_assets_tests.storm import points

points.install()
